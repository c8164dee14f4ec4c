"""What several tests use: oracles, traffic, fakes and processes."""
