/**
 * Reads the body of an HTTP message, of which never more is held than is allowed.
 */

/** The body in UTF-8; `undefined` where it has more than `maxBytes` bytes, and the rest of it is then not read (attack D2). */
export async function readBody(
  message: AsyncIterable<unknown>,
  maxBytes: number,
): Promise<string | undefined> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of message as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > maxBytes) return undefined;
    chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}
