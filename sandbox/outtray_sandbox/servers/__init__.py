"""The embedded servers one by one: where they live and as whom they run, PostgreSQL, Valkey."""
