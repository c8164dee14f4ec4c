"""The contract as OpenAPI, and its page."""
