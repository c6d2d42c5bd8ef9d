"""Memory policies: exact execution of networks in less memory."""
