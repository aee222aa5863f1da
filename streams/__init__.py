"""The stream: keeps the conference-to-node table and decides which parked caller is dialled where."""
