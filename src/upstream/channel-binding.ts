/**
 * What SCRAM binds itself to under TLS: the hash of the server's certificate, `tls-server-end-point` of RFC 5929 §4.1.
 *
 * With it a server that somebody else stands in front of cannot pass our login on. Reads of a certificate only by which
 * algorithm it is signed; OpenSSL has parsed the rest, and judged it where the configuration says so.
 */
import { createHash } from 'node:crypto';
import type { PeerCertificate, TLSSocket } from 'node:tls';

/** The hash of a signature algorithm, by the DER of its object identifier; MD5 and SHA-1 count as SHA-256. */
const HASH_OF_SIGNATURE: ReadonlyMap<string, string> = new Map([
  ['2a864886f70d010104', 'sha256'], // md5WithRSAEncryption
  ['2a864886f70d010105', 'sha256'], // sha1WithRSAEncryption
  ['2a864886f70d01010e', 'sha224'], // sha224WithRSAEncryption
  ['2a864886f70d01010b', 'sha256'], // sha256WithRSAEncryption
  ['2a864886f70d01010c', 'sha384'], // sha384WithRSAEncryption
  ['2a864886f70d01010d', 'sha512'], // sha512WithRSAEncryption
  ['2a8648ce3d0401', 'sha256'], // ecdsa-with-SHA1
  ['2a8648ce3d040301', 'sha224'], // ecdsa-with-SHA224
  ['2a8648ce3d040302', 'sha256'], // ecdsa-with-SHA256
  ['2a8648ce3d040303', 'sha384'], // ecdsa-with-SHA384
  ['2a8648ce3d040304', 'sha512'], // ecdsa-with-SHA512
]);

/** RSASSA-PSS names its hash in a parameter, and means SHA-1 where it names none. */
const RSASSA_PSS = '2a864886f70d01010a';
const HASH_OF_PSS: ReadonlyMap<string, string> = new Map([
  ['2b0e03021a', 'sha256'], // id-sha1
  ['608648016503040204', 'sha224'],
  ['608648016503040201', 'sha256'],
  ['608648016503040202', 'sha384'],
  ['608648016503040203', 'sha512'],
]);

/**
 * What the server at the other end of `stream` is bound by; `undefined` where RFC 5929 defines nothing: certificates
 * signed with EdDSA have no hash of their own, and PostgreSQL fails every login that binds to one.
 */
export function serverEndPoint(stream: TLSSocket): Buffer | undefined {
  // Not getPeerX509Certificate(), which in Node 20 gives the certificate away: whoever asks next gets none.
  const certificate = (stream.getPeerCertificate() as Partial<PeerCertificate>).raw;
  if (certificate === undefined) return undefined;
  const hash = signatureHash(certificate);
  return hash === undefined ? undefined : createHash(hash).update(certificate).digest();
}

/** The hash, as Node names it, that RFC 5929 wants for this certificate (DER); `undefined` where there is none. */
export function signatureHash(certificate: Buffer): string | undefined {
  // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm SEQUENCE { algorithm, parameters }, … }
  const [, algorithm] = elements(elements(certificate)[0]?.body);
  const [id, parameters] = elements(algorithm?.body);
  const name = id?.body.toString('hex') ?? '';
  if (name !== RSASSA_PSS) return HASH_OF_SIGNATURE.get(name);
  // RSASSA-PSS-params ::= SEQUENCE { hashAlgorithm [0] HashAlgorithm DEFAULT sha1, … }
  const [first] = elements(parameters?.body);
  if (first?.tag !== 0xa0) return 'sha256';
  const [hash] = elements(elements(first.body)[0]?.body);
  return HASH_OF_PSS.get(hash?.body.toString('hex') ?? '');
}

/** The elements that follow one another in `bytes`, in DER; what is cut off or malformed is left out, and so is all behind it. */
function elements(bytes: Buffer = Buffer.alloc(0)): { tag: number; body: Buffer }[] {
  const found: { tag: number; body: Buffer }[] = [];
  let at = 0;
  while (at + 2 <= bytes.length) {
    const tag = bytes[at] as number;
    const short = bytes[at + 1] as number;
    const lengthBytes = short < 0x80 ? 0 : short & 0x7f;
    const start = at + 2 + lengthBytes;
    // 0x80 alone would be BER's indefinite length; no certificate is as long as four bytes can say.
    if (short === 0x80 || lengthBytes > 3 || start > bytes.length) break;
    const length = lengthBytes === 0 ? short : bytes.readUIntBE(at + 2, lengthBytes);
    if (start + length > bytes.length) break;
    found.push({ tag, body: bytes.subarray(start, start + length) });
    at = start + length;
  }
  return found;
}
