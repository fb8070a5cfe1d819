"""What the scripts need beside the method: errors, files, the machine. Readers may skip it."""
