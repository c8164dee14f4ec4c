"""The contract: the table of routes, the OpenAPI document, and its page for a browser."""
