"""What two services or more need: events, schedules, subjects, connections, health and metrics. Imports no service."""
