"""Constants of laws fitted to measured times, and their errors on shapes that were left out."""
