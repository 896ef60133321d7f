-- Says which of the session functions setup has changed, and tidies up after it.
--
-- Runs when all functions are there, in the same transaction and with the settings of portable.sql.

DO $report$
DECLARE
  installed constant text  := current_setting('pgjot_install.installed');
  ours      constant text  := current_setting('pgjot_install.version');
  before    constant jsonb := current_setting('pgjot_install.functions')::jsonb;
  changed   text;
BEGIN
  IF installed = '' THEN
    RAISE INFO 'installed the session functions, version %', ours;
  ELSIF installed <> ours THEN
    RAISE INFO 'upgraded the session functions from version % to %', installed, ours;
  ELSE
    FOR changed IN
      SELECT f.key FROM jsonb_each_text(pg_temp.our_functions()) f
       WHERE f.value IS DISTINCT FROM before ->> f.key ORDER BY f.key
    LOOP
      RAISE INFO 'installed function % anew', changed;
    END LOOP;
  END IF;
END
$report$;

DROP FUNCTION pg_temp.has_been_reset(name);
DROP FUNCTION pg_temp.our_functions(), pg_temp.wanted_slots();
DROP FUNCTION pg_temp.is_too_mighty(name, text[]);
