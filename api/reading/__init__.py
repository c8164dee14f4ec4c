"""Reading: what the database and Redis are asked, and the figures that are made of their rows."""
