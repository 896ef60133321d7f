-- Takes away what heal.sql made, where the configuration no longer says "healSlots", and before uninstalling.
--
-- Other databases of the cluster that use pgjot_healer keep it.

DO $healer$
DECLARE
  admin constant name := current_user;
BEGIN
  IF to_regrole('pgjot_healer') IS NULL THEN
    RETURN;
  END IF;
  -- Not DROP OWNED BY: before PostgreSQL 16 that takes back only what the administrator himself has granted.
  IF to_regclass('pgjot.slot') IS NOT NULL THEN
    GRANT pgjot_owner TO CURRENT_USER;
    SET LOCAL ROLE pgjot_owner;
    DROP FUNCTION IF EXISTS pgjot.heal(name, text);
    REVOKE ALL ON pgjot.slot FROM pgjot_healer;
    REVOKE ALL ON SCHEMA pgjot FROM pgjot_healer;
    PERFORM set_config('role', admin, true);
    REVOKE pgjot_owner FROM CURRENT_USER;
  END IF;
  BEGIN
    DROP ROLE pgjot_healer;
    RAISE INFO 'dropped role "pgjot_healer"';
  EXCEPTION WHEN dependent_objects_still_exist THEN
    NULL;
  END;
END
$healer$;
