"""The price book over HTTP: listing it, appending to it, and saying what a change would cost.

`routes` has the handlers, and `orders` reads the bodies. The rules of prices, and how they are appended and
compared, are those of the commands (`pipeline.prices`).
"""
