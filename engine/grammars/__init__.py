"""What answers must look like: from a schema, an expression or a grammar to the tokens that may come next."""
