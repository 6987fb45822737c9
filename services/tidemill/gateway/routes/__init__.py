"""The routes of the management API and of the two inference protocols, one noun a file."""
