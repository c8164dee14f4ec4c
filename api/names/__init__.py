"""Names over HTTP: setting and removing those of orgs and of values of their dimensions.

`routes` has the handlers, and `orders` reads the bodies. The rules are those of the command
(`pipeline.common.names`). What reads names for other answers is `api.reading.names`.
"""
