"""What the API may know of the pipeline's rooms, too: nothing here knows streams, rollups or requests."""
