"""What results of a case are called, how they are written, and which are finished."""
