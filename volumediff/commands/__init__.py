"""Commands of the program, one file each; heavy packages load inside them."""
