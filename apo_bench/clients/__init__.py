"""Clients of chat servers: endpoints, rate and spending limits, a journal that pays nothing twice, golden responses."""
