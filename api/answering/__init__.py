"""What is answered: bodies, money and problems."""
