"""The configurations that ship with the package; the commands look here after the working directory."""
