#!/bin/sh
# Plays a node that ends by itself, and `terrane local` that fails.
echo the disk is on fire
exit 3
