"""What the gateway knows, durable before anybody is told it: a module for each table's moves."""
