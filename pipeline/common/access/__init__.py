"""Who asks, and by which credential: what every server of ours shares."""
