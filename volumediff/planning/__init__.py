"""What a configuration will cost in memory and time, before it runs and measured."""
