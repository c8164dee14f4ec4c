"""Streams of RabbitMQ: frames, connections, subscriptions and publishing."""
