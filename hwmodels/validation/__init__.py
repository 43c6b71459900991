"""Model against measurement: tables of kernel timings read, predicted and scored."""
