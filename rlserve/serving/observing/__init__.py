"""What is told of requests beside metrics: records for logs and spans for traces."""
