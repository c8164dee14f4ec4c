"""Processes of our own: started, watched and stopped."""
