"""What the database is asked, and what its rows come to."""
