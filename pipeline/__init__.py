"""Spendstream's data path: stream in, exact rollups out.

Follow one event through the rooms: ``transports`` brings chunks from the broker, ``worker`` gives each chunk
to the ledger of its partition, ``core`` decides and adds up, and ``sink`` commits a batch in one transaction.
``worker.service`` builds and stops all of that.
"""
