"""Tests: pure logic in `unit`, everything that talks in `integration`, against real servers that the tests start."""
