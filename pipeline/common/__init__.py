"""Code that the pipeline and the API share. Nothing here knows streams, rollups or requests."""
