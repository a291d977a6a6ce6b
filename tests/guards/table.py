TESTS: dict[str, str] = {}
