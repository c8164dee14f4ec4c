"""Answers: their types, money, problems, and validators for caches."""
