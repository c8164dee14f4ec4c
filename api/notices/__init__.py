"""Notices that an org may ask for: hours of unusual spend, and a summary of each day.

`rules` is pure: what is unusual, and which hours and days are due. `figures` reads what they are judged by,
`judge` is the one transaction that commits what is to be said, and `watch` says when to look. `orders` reads
bodies, `kept` knows the rows, and `routes` has the handlers.
"""
