"""Answers under degraded images, tags and questions, and the router weights beside them."""
