"""The child process that owns one chdb engine and answers ClickHouse's HTTP interface on loopback."""
