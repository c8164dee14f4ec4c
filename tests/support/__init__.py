"""What several tests use, a module a subject: oracles, traffic, fakes, servers, processes and callers."""
