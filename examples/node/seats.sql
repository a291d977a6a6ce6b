CREATE TABLE seats (
    area text PRIMARY KEY,
    free integer NOT NULL CHECK (free >= 0),
    held integer NOT NULL DEFAULT 0 CHECK (held >= 0),
    sold integer NOT NULL DEFAULT 0
);
INSERT INTO seats (area, free) VALUES ('stalls', 1000);
