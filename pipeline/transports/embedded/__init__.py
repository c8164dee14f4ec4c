"""The stream log of the demo: files in a folder, without a broker."""
