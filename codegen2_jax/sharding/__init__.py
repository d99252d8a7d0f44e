"""The mesh, the axis table, and the shardings of a state."""
