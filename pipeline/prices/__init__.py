"""The price book: reading sources of prices, and appending to the book only what it does not say yet."""
