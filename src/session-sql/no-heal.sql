-- Takes away what heal.sql made, where the configuration no longer says "healSlots", and before uninstalling.
--
-- Other databases of the cluster that use pgjot_healer keep it.

DO $healer$
DECLARE
  healer constant oid := to_regrole('pgjot_healer');
BEGIN
  IF healer IS NULL THEN
    RETURN;
  END IF;
  GRANT pgjot_healer TO CURRENT_USER;
  DROP OWNED BY pgjot_healer;
  BEGIN
    DROP ROLE pgjot_healer;
    RAISE INFO 'dropped role "pgjot_healer"';
  EXCEPTION WHEN dependent_objects_still_exist THEN
    REVOKE pgjot_healer FROM CURRENT_USER;
  END;
END
$healer$;
