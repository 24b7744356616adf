/* memory: internal declarations of the core; no directives, cffi reads this too. */
