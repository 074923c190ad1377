#!/bin/sh
# Plays a node that stops when told to; its sleeping child is ended with it.
trap 'kill $!; echo bye; exit 0' TERM
sleep 600 &
echo "up $1 $2"
wait
