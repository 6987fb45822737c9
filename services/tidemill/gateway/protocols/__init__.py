"""JSON forms of inference requests and answers, and the messages that they stand for."""
