/**
 * Types of the SCRAM client inside `pg`, which publishes the path but no declarations for it.
 */
declare module 'pg/lib/crypto/sasl.js' {
  import type { TLSSocket } from 'node:tls';

  namespace sasl {
    interface Session {
      readonly mechanism: string;
      readonly response: string;
    }
  }
  const sasl: {
    startSession(mechanisms: string[], stream: TLSSocket | null): sasl.Session;
    continueSession(
      session: sasl.Session,
      password: string,
      serverData: string,
      stream: TLSSocket | null,
    ): Promise<void>;
    finalizeSession(session: sasl.Session, serverData: string): void;
  };
  export default sasl;
}
