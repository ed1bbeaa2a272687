"""What the gateway knows, durable before anybody is told it: the tables, and a module for each table's moves."""
