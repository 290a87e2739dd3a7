"""All that a worker process imports: small, so that it starts fast and stays out of the way of the user's code."""
