"""The routes, a file a room. `api.contract.operations` puts them together."""
